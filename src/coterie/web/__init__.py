"""Web applications on a socket of this machine: what the board and the server of models share."""
