"""An artifact's constraints: checked (pure), compiled, and attested on the launcher that installed them."""
