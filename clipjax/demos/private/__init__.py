"""`clipjax private`: differentially private training from the data to the report."""
