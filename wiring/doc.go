// Package wiring puts the daemon together: the configuration, the constructors
// and the telemetry SDK. It is the only package that knows all the others, and
// no other package but the commands knows it.
//
// Its invariant: [Load] is the only place that reads the environment or a
// configuration file. What it returns is complete, normalised and checked, so
// that nothing behind it parses a setting or asks for a default again.
//
//	defaults ──▶ file ──▶ environment ──▶ decode ──▶ validate ──▶ *Config
//	                 │          │            │           │
//	                 └──────────┴────────────┴───────────┴──▶ *ConfigError: every problem at once
package wiring
