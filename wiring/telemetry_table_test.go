package wiring_test

import "testing"

func judgeTelemetryTable(*testing.T, *collector) {}
