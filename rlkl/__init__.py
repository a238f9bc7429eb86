"""rlkl: one interface, many policy-update rules, one KL to compare them by."""
