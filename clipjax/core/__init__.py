"""The engine that all clips share. Everything in here is internal to clipjax."""
