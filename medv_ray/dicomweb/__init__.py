"""DICOMweb as a client speaks it (PS3.18): QIDO-RS, WADO-RS, STOW-RS."""
