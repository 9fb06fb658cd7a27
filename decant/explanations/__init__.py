"""Why a network answers what it answers: attributions, how alike two are, and whether they mean anything."""
