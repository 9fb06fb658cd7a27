"""What all operations share: the ledger, the checks at their end, and the removal of channels."""
