module cleave/examples/go-server

go 1.24

require cleave/go v0.0.0

replace cleave/go => ../../bindings/go
