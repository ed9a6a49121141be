module cleave/go

go 1.24
