"""The atlas of methods: every recipe on six small tasks under four conditions."""
