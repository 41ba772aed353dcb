package telemetry

import (
	"log/slog"
	"net/url"
	"strings"
)

// settings are what the environment asks for. The exporters read the rest of
// it, endpoints and headers say, by themselves.
type settings struct {
	disabled        bool
	traces, metrics string // the protocol of OTLP; empty when off
	prometheus      bool
	secrets         []string // header values that must not be repeated
}

// The protocols of OTLP.
const (
	protocolGRPC     = "grpc"
	protocolProtobuf = "http/protobuf"
	protocolJSON     = "http/json"
)

// readSettings never fails: a value that means nothing is warned of, by the
// name of its variable, and ignored.
func readSettings(getenv func(string) string, log *slog.Logger) settings {
	var s settings
	if s.disabled = strings.EqualFold(strings.TrimSpace(getenv("OTEL_SDK_DISABLED")), "true"); s.disabled {
		return s
	}
	for _, exporter := range exporters(getenv, "TRACES") {
		switch exporter {
		case "otlp":
			s.traces = protocol(getenv, "TRACES", log)
		case "none":
		default:
			log.Warn("traces are not exported there; set OTEL_TRACES_EXPORTER to otlp or none", "exporter", exporter)
		}
	}
	for _, exporter := range exporters(getenv, "METRICS") {
		switch exporter {
		case "otlp":
			s.metrics = protocol(getenv, "METRICS", log)
		case "prometheus":
			s.prometheus = true
		case "none":
		default:
			log.Warn("metrics are not exported there; set OTEL_METRICS_EXPORTER to otlp, prometheus or none", "exporter", exporter)
		}
	}
	for _, signal := range []string{"", "TRACES_", "METRICS_"} {
		s.secrets = append(s.secrets, headerValues(getenv("OTEL_EXPORTER_OTLP_"+signal+"HEADERS"))...)
	}
	return s
}

// exporters are those of a signal. An endpoint stands for otlp.
func exporters(getenv func(string) string, signal string) []string {
	named := strings.FieldsFunc(strings.ToLower(getenv("OTEL_"+signal+"_EXPORTER")), func(r rune) bool {
		return r == ',' || r == ' '
	})
	endpoint := getenv("OTEL_EXPORTER_OTLP_ENDPOINT") + getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT")
	if len(named) == 0 && strings.TrimSpace(endpoint) != "" {
		return []string{"otlp"}
	}
	return named
}

func protocol(getenv func(string) string, signal string, log *slog.Logger) string {
	name := "OTEL_EXPORTER_OTLP_" + signal + "_PROTOCOL"
	value := strings.TrimSpace(getenv(name))
	if value == "" {
		name = "OTEL_EXPORTER_OTLP_PROTOCOL"
		value = strings.TrimSpace(getenv(name))
	}
	switch value {
	case protocolGRPC, protocolProtobuf, protocolJSON:
		return value
	case "":
	default:
		log.Warn("no such protocol of OTLP, http/protobuf is used; set it to grpc, http/protobuf or http/json", "variable", name)
	}
	return protocolProtobuf
}

// headerValues are the values of key=value,key=value, as written and decoded.
// A collector may repeat them in an error.
func headerValues(headers string) (values []string) {
	for header := range strings.SplitSeq(headers, ",") {
		_, value, found := strings.Cut(header, "=")
		if !found {
			value = header
		}
		decoded, err := url.PathUnescape(value)
		if err != nil {
			decoded = value
		}
		for _, form := range []string{strings.TrimSpace(value), strings.TrimSpace(decoded)} {
			if len(form) >= 4 {
				values = append(values, form)
			}
		}
	}
	return values
}
