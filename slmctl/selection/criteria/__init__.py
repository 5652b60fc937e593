"""The criteria, one file each; `slmctl.selection.table` lists them."""
