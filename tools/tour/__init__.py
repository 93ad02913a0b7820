"""The stops of the tour of the whole public API: see tools/api_tour.py."""
