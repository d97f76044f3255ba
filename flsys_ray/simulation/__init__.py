"""Virtual time: what would happen to a fleet, computed in moments and without waiting."""
