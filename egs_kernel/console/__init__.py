"""The console: what an unprivileged process shows of this host over HTTP, on loopback. It changes nothing."""
