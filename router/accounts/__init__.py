"""Who may ask: keys now; tiers, limits, prices and usage belong here too."""
