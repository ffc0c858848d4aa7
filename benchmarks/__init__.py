"""Speed, and what else is counted or compared: `make bench` measures it."""
