"""One sequence packed from several samples, or shared by several processes."""
