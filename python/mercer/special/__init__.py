"""Special functions that keep their digits where the usual ones leave float64."""
