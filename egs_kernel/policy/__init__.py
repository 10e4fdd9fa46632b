"""Policy: who may have what authorized. Pure: bytes in, a decision by Cedar or a typed error out."""
