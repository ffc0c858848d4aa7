"""The engine: what every clip shares. Everything here is internal to clipjax."""
