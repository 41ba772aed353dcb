package attacks

import "fmt"

// Harmful holds the characters that a terminal obeys, or that turn the order of what a person reads.
const Harmful = "\x1b[2J\x7f\u0080\u009b\u009f\u061c\u200e\u200f\u202a\u202e\u2066\u2069"

// Markup is a text that a page which takes it for markup obeys. It then sets window.pwned to the place that the text came from.
func Markup(place string) string {
	return fmt.Sprintf(`'"></script><script>window.pwned=%q</script><img src=x onerror="window.pwned='%[1]s'"><svg onload="window.pwned='%[1]s'"></svg>`+
		`<a href="javascript:window.pwned='%[1]s'" onmouseover="window.pwned='%[1]s'">`, place)
}
