"""One stage of training: plan, checks, features, snapshots, record."""
