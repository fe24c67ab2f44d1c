"""The words of edgebuild: frozen data and contracts that every floor above shares."""
