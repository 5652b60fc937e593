"""The page's sections: each turns a part of the results into tables and figures, or is left out where that part is absent."""
