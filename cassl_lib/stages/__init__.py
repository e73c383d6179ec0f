"""The stages of CA-SSL (Fig. 2)."""
