package proxy

import "bytes"

const (
	// maxNeedle is how much of the key is looked for: what the processor can search for at full speed. Of a signed
	// key it is the end, which is most of its signature.
	maxNeedle = 63
	// minNeedle is the length under which a key is too short to be told from other text.
	minNeedle = 16
)

// guard keeps the key out of what the step is answered, should the API echo it. The zero value lets everything pass.
type guard struct{ needle []byte }

func guardOf(key string) guard {
	if len(key) < minNeedle {
		return guard{}
	}
	return guard{[]byte(key[max(0, len(key)-maxNeedle):])}
}

// echoes reports whether a field's value has the key in it.
func (g guard) echoes(value []byte) bool {
	return len(g.needle) > 0 && len(value) >= len(g.needle) && bytes.Contains(value, g.needle)
}

// mask makes the key unusable wherever it stands, without changing any length.
func (g guard) mask(data []byte) {
	if len(g.needle) == 0 {
		return
	}
	for {
		i := bytes.Index(data, g.needle)
		if i < 0 {
			return
		}
		for j := range g.needle {
			data[i+j] = '*'
		}
		data = data[i+len(g.needle):]
	}
}

// beginning is the length of what ends data and could be the key's beginning, whose rest has not arrived.
func (g guard) beginning(data []byte) int {
	tail := data[max(0, len(data)-max(0, len(g.needle)-1)):]
	for len(tail) > 0 {
		i := bytes.IndexByte(tail, g.needle[0])
		if i < 0 {
			return 0
		}
		tail = tail[i:]
		if bytes.HasPrefix(g.needle, tail) {
			return len(tail)
		}
		tail = tail[1:]
	}
	return 0
}
