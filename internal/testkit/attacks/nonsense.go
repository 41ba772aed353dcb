package attacks

import "strings"

// Nonsense returns invalid values with which a user with write access to Redis could replace any value.
func Nonsense() map[string]string {
	return map[string]string{
		"nothing": "", "null": "null", "a list": "[]", "an object": "{}", "a number": "1", "a text": `"x"`,
		"no UTF-8": "\xff\xfe", "half an object": `{"id":`,
		"lists nested 100,000 deep": strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000),
		"a megabyte":                `{"id":"` + strings.Repeat("x", 1<<20) + `"}`,
		"a number beyond any":       `{"version":1e999999999,"expires_at":-99999999999999999999,"created_at":"9999999-01-01T00:00:00Z"}`,
		"names given twice":         `{"account_id":"a","account_id":"b","id":"a","id":"b"}`,
	}
}
