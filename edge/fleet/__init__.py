"""The server's side: what it knows of each node, and how that is shown."""
