"""Who may ask, for what, how much and until when; and what they used: `accounts.Accounts` is the way in."""
