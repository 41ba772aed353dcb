package runner

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The grammar of values in text form. Each type has one function, which returns the normal form. The harness implements
// the same grammar in kizen_runtime/grammar.py; the table testdata/values.json tests both.

const (
	// maxDigits is the maximal number of digits of a number, CPython's default limit for converting text.
	maxDigits = 4300
	// maxNesting limits the nesting of lists and of "a[a[...]]", so that neither side recurses without bound.
	maxNesting = 64
	// maxElements is the maximal total number of list elements in one document.
	maxElements = 100_000
)

// ignored is the white space that is ignored around a value of any type but text.
const ignored = " \t\r\n"

var (
	numberText   = regexp.MustCompile(`^([+-]?)(\d*)(\.?)(\d*)(?:[eE]([+-]?\d+))?$`)
	dateText     = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}$`)
	datetimeText = regexp.MustCompile(`^(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2})(:\d{2})?([.,]\d+)?([Zz]|[+-]\d{2}(?::?\d{2})?)?$`)
	phoneText    = regexp.MustCompile(`^\+[1-9]\d{1,14}$`)
	uuidText     = regexp.MustCompile(`^([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})$`)
)

// parseNumber accepts JSON's grammar, and also a plus sign, leading zeros and a missing digit beside the point.
func parseNumber(text string) (string, error) {
	m := numberText.FindStringSubmatch(strings.Trim(text, ignored))
	if m == nil || m[2] == "" && m[4] == "" {
		return "", errors.New("must be a number")
	}
	sign, whole, point, fraction, exponent := m[1], strings.TrimLeft(m[2], "0"), m[3], m[4], m[5]
	if len(m[2])+len(fraction)+len(strings.TrimLeft(exponent, "+-")) > maxDigits {
		return "", fmt.Errorf("must be a number of at most %d digits", maxDigits)
	}
	normal := orZero(whole)
	if point != "" {
		normal += "." + orZero(fraction)
	}
	if exponent != "" {
		normal += "e" + exponent
	}
	if point != "" || exponent != "" {
		if f, err := strconv.ParseFloat(normal, 64); err != nil || math.IsInf(f, 0) {
			return "", errors.New("must be a number within the range of a float")
		}
	}
	if sign == "-" {
		normal = sign + normal
	}
	return normal, nil
}

func orZero(digits string) string {
	if digits == "" {
		return "0"
	}
	return digits
}

func parseBoolean(text string) (bool, error) {
	switch strings.ToLower(strings.Trim(text, ignored)) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errors.New("must be true or false")
}

func parseDate(text string) (string, error) {
	text = strings.Trim(text, ignored)
	day, err := time.Parse(time.DateOnly, text)
	if err != nil || !dateText.MatchString(text) || day.Year() == 0 {
		return "", errors.New("must be a date as YYYY-MM-DD")
	}
	return text, nil
}

// parseDatetime keeps the wall clock and the offset as written, and truncates to microseconds, the resolution of
// Python's datetime.
func parseDatetime(text string) (string, error) {
	wrong := errors.New("must be a datetime in ISO 8601, like 2026-01-01T12:00:00Z")
	m := datetimeText.FindStringSubmatch(strings.Trim(text, ignored))
	if m == nil {
		return "", wrong
	}
	day, seconds, fraction, offset := m[1], m[3], m[4], m[5]
	if _, err := parseDate(day); err != nil || seconds == "" && fraction != "" {
		return "", wrong
	}
	if seconds == "" {
		seconds = ":00"
	}
	if _, err := time.Parse(time.TimeOnly, m[2]+seconds); err != nil {
		return "", wrong
	}
	if fraction != "" {
		fraction = "." + fraction[1:min(len(fraction), 7)]
	}
	switch {
	case offset == "":
	case strings.EqualFold(offset, "Z"):
		offset = "+00:00"
	default:
		digits := strings.ReplaceAll(offset[1:], ":", "") + "00"
		offset = offset[:1] + digits[:2] + ":" + digits[2:4]
		if _, err := time.Parse("15:04", offset[1:]); err != nil {
			return "", wrong
		}
		if offset == "-00:00" {
			offset = "+00:00"
		}
	}
	return day + "T" + m[2] + seconds + fraction + offset, nil
}

// parsePhone accepts E.164.
func parsePhone(text string) (string, error) {
	text = strings.Trim(text, ignored)
	if !phoneText.MatchString(text) {
		return "", errors.New("must be a phone number in E.164, like +13125550142")
	}
	return text, nil
}

// parseUUID accepts any case, with all dashes or none.
func parseUUID(text string) (string, error) {
	text = strings.ToLower(strings.Trim(text, ignored))
	m := uuidText.FindStringSubmatch(text)
	if m == nil || len(text) != 32 && len(text) != 36 {
		return "", errors.New("must be a UUID")
	}
	return strings.Join(m[1:], "-"), nil
}
