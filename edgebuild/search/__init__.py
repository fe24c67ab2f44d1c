"""The search: survey, plan, make, measure, judge."""
