//! A run: from a seed to a plan, through the faults, to a record.
