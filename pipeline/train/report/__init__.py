"""Record a run while it trains: history.csv, learning curve, trackers, rates and utilisation."""
