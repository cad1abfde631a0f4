"""The node's side: where readings come from. One file for each source."""
