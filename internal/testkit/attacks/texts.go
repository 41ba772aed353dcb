package attacks

import "fmt"

// Harmful contains the characters that control a terminal, or that change the order in which text is displayed.
const Harmful = "\x1b[2J\x7f\u0080\u009b\u009f\u061c\u200e\u200f\u202a\u202e\u2066\u2069"

// Hidden contains characters that are invisible in text, or that only some programs treat as line breaks.
const Hidden = "\u00ad\u180e\u200b\u2028\u2029\u2060\ufeff\U000e0041\U000e007f"

// Markup returns a text that sets window.pwned to place if a page treats it as markup.
func Markup(place string) string {
	return fmt.Sprintf(`'"></script><script>window.pwned=%q</script><img src=x onerror="window.pwned='%[1]s'"><svg onload="window.pwned='%[1]s'"></svg>`+
		`<a href="javascript:window.pwned='%[1]s'" onmouseover="window.pwned='%[1]s'">`, place)
}
