"""What server.py and node.py are made of. What both need lies here; fleet/ is the server's alone, hardware/ the node's."""
