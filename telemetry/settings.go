package telemetry

import (
	"crypto/x509"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

// settings holds the settings from the environment. The exporters read the others, such as endpoints and headers,
// themselves.
type settings struct {
	disabled        bool
	traces, metrics string // the protocol of OTLP; empty if off
	prometheus      bool
	secrets         []string // header values that must not be repeated
	invalid         bool     // a warning has named an invalid variable
}

// The protocols of OTLP.
const (
	protocolGRPC     = "grpc"
	protocolProtobuf = "http/protobuf"
	protocolJSON     = "http/json"
)

// readSettings never fails: it ignores an invalid value and logs a warning with the variable's name.
func readSettings(getenv func(string) string, log *slog.Logger) settings {
	var s settings
	s.invalid = checkSetting(getenv, log, "OTEL_SDK_DISABLED", oneOf("true", "false"), "true or false")
	if s.disabled = strings.EqualFold(strings.TrimSpace(getenv("OTEL_SDK_DISABLED")), "true"); s.disabled {
		return s
	}
	for _, exporter := range exporters(getenv, "TRACES") {
		switch exporter {
		case "otlp":
			s.traces = protocol(getenv, "TRACES")
		case "none":
		default:
			log.Warn("unsupported traces exporter; set OTEL_TRACES_EXPORTER to otlp or none", "exporter", exporter)
		}
	}
	for _, exporter := range exporters(getenv, "METRICS") {
		switch exporter {
		case "otlp":
			if s.metrics = protocol(getenv, "METRICS"); s.metrics == protocolJSON {
				s.metrics = protocolProtobuf // which every collector understands
				log.Warn("metrics are sent as http/protobuf: their exporter has no http/json; set OTEL_EXPORTER_OTLP_METRICS_PROTOCOL to http/protobuf or grpc")
			}
		case "prometheus":
			s.prometheus = true
		case "none":
		default:
			log.Warn("unsupported metrics exporter; set OTEL_METRICS_EXPORTER to otlp, prometheus or none", "exporter", exporter)
		}
	}
	for _, signal := range []string{"", "TRACES_", "METRICS_"} {
		s.secrets = append(s.secrets, headerValues(getenv("OTEL_EXPORTER_OTLP_"+signal+"HEADERS"))...)
	}
	if s.traces == "" && s.metrics == "" {
		return s // the rest concerns only OTLP
	}
	for _, c := range checks {
		for _, name := range c.names {
			s.invalid = checkSetting(getenv, log, name, c.sense, c.write) || s.invalid
		}
	}
	return s
}

// exporters returns the exporters of a signal. An endpoint without an exporter means otlp.
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

// protocol returns the protocol of a signal: http/protobuf if the setting is missing or unknown.
func protocol(getenv func(string) string, signal string) string {
	value := strings.TrimSpace(getenv("OTEL_EXPORTER_OTLP_" + signal + "_PROTOCOL"))
	if value == "" {
		value = strings.TrimSpace(getenv("OTEL_EXPORTER_OTLP_PROTOCOL"))
	}
	switch value {
	case protocolGRPC, protocolJSON:
		return value
	}
	return protocolProtobuf
}

// checks lists the variables that the exporters and the SDK read themselves. They ignore invalid values without naming
// the variable.
var checks = []struct {
	names []string
	sense func(string) bool
	write string
}{
	{ofOTLP("ENDPOINT"), isEndpoint, "http://host:port or https://host:port"},
	{ofOTLP("PROTOCOL"), oneOf(protocolGRPC, protocolProtobuf, protocolJSON), "grpc, http/protobuf or http/json"},
	{ofOTLP("HEADERS"), areHeaders, "name=value,name=value, percent-encoded"},
	{ofOTLP("TIMEOUT"), isNumber, "milliseconds, such as 10000"},
	{ofOTLP("COMPRESSION"), oneOf("gzip", "none"), "gzip or none"},
	{ofOTLP("INSECURE"), oneOf("true", "false"), "true or false"},
	{ofOTLP("CERTIFICATE"), holdsCertificates, "the path of a PEM file of certificates"},
	{ofOTLP("CLIENT_CERTIFICATE"), holdsCertificates, "the path of a PEM file of certificates"},
	{ofOTLP("CLIENT_KEY"), isReadable, "the path of a PEM file"},
	{[]string{"OTEL_TRACES_SAMPLER"}, oneOf("always_on", "always_off", "traceidratio", "parentbased_always_on",
		"parentbased_always_off", "parentbased_traceidratio"),
		"parentbased_traceidratio, say"},
	{[]string{"OTEL_TRACES_SAMPLER_ARG"}, isRatio, "a number from 0 to 1"},
	{[]string{
		"OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT", "OTEL_METRIC_EXPORT_INTERVAL", "OTEL_METRIC_EXPORT_TIMEOUT",
	}, isNumber, "milliseconds, such as 5000"},
	{[]string{
		"OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
		"OTEL_ATTRIBUTE_COUNT_LIMIT",
		"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_EVENT_COUNT_LIMIT",
		"OTEL_SPAN_LINK_COUNT_LIMIT",
		"OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
	}, isNumber, "a number"},
}

// checkSetting logs the name of an invalid variable, but not its value, which may be a secret.
func checkSetting(getenv func(string) string, log *slog.Logger, name string, valid func(string) bool,
	write string) (invalid bool) {
	value := strings.TrimSpace(getenv(name))
	if value == "" || valid(value) {
		return false
	}
	log.Warn("this variable has an invalid value; write "+write, "variable", name)
	return true
}

func ofOTLP(what string) []string {
	return []string{"OTEL_EXPORTER_OTLP_" + what, "OTEL_EXPORTER_OTLP_TRACES_" + what,
		"OTEL_EXPORTER_OTLP_METRICS_" + what}
}

func oneOf(words ...string) func(string) bool {
	return func(value string) bool { return slices.Contains(words, strings.ToLower(value)) }
}

func isEndpoint(value string) bool {
	endpoint, err := url.Parse(value)
	return err == nil && (endpoint.Scheme == "http" || endpoint.Scheme == "https") && endpoint.Host != ""
}

func areHeaders(value string) bool {
	for header := range strings.SplitSeq(value, ",") {
		name, value, found := strings.Cut(header, "=")
		if _, err := url.PathUnescape(value); err != nil || !found || strings.TrimSpace(name) == "" {
			return false
		}
	}
	return true
}

func isNumber(value string) bool {
	_, err := strconv.Atoi(value)
	return err == nil
}

func isRatio(value string) bool {
	ratio, err := strconv.ParseFloat(value, 64)
	return err == nil && ratio >= 0 && ratio <= 1
}

func isReadable(path string) bool {
	_, err := os.ReadFile(path)
	return err == nil
}

func holdsCertificates(path string) bool {
	text, err := os.ReadFile(path)
	return err == nil && x509.NewCertPool().AppendCertsFromPEM(text)
}

// headerValues returns the values of key=value,key=value, both raw and decoded. A collector may repeat them in an
// error.
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
