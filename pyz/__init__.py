"""What starts a .pyz on a box. It lies in the zip as it lies here."""
