"""Tables as spreadsheets, data frames and datasets write them: text, columns, cells, file names."""
