"""People with local accounts: invited, known by password and one-time code, in sessions."""
