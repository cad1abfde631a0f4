"""The server's ways out over HTTP: a page for people, figures for Prometheus, JSON for programs."""
