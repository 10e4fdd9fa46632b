"""What a scope really runs, as a proposal: for a person to review, and to sign."""
