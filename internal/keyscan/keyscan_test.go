package keyscan

import (
	"bytes"
	"encoding/base64"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/kizen/kizen-sidecar/internal/testkit/attacks"
)

// signedKey has the shape of a signed key: claims, and 86 characters of signature.
func signedKey(r *rand.Rand) string {
	signature := make([]byte, 64)
	for i := range signature {
		signature[i] = byte(r.Uint32())
	}
	return "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ0ZXN0In0." + base64.RawURLEncoding.EncodeToString(signature)
}

func TestEveryFormOfTheKeyIsMasked(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		key := signedKey(random)
		s := New(key)
		for _, form := range attacks.Encodings() {
			name, encode := form.Name, form.Encode
			for before := range 40 {
				text := encode(strings.Repeat("x", before) + key + "tail of the answer")
				data := []byte(text)
				s.Mask(data)
				if len(data) != len(text) || s.Contains(data) {
					t.Fatalf("%s, %d bytes before it: %q", name, before, data)
				}
				least := 8 // tenths of the key's last 84 characters
				if form.Leaks {
					least = 4 // a line break splits only one piece
				}
				if stars := bytes.Count(data, []byte("*")); stars < len(encode(key[len(key)-84:]))*least/10 {
					t.Errorf("%s, %d bytes before it: only %d bytes were masked: %q", name, before, stars, data)
				}
			}
		}
	}
}

func TestOtherTextIsUnchanged(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	s, other := New(signedKey(random)), signedKey(random)
	text := strings.Repeat(other+` {"a": 1} `, 1000)
	data := []byte(text)
	s.Mask(data)
	if string(data) != text || s.Contains(data) {
		t.Error("a text without the key was changed")
	}
}

func TestAKeyThatArrivesInTwoPiecesIsMasked(t *testing.T) {
	key := signedKey(rand.New(rand.NewPCG(5, 6)))
	s := New(key)
	for _, form := range attacks.Encodings() {
		name, encode := form.Name, form.Encode
		text := encode("x" + key + "y")
		want := []byte(text)
		s.Mask(want)
		for at := range len(text) {
			first := []byte(text[:at])
			s.Mask(first)
			held := s.Pending(first)
			// The bytes that were already passed on may contain MinPending-1 bytes of a form.
			from := max(0, at-max(held, MinPending-1))
			rest := []byte(string(first[from:]) + text[at:])
			s.Mask(rest)
			if got := string(first[:from]) + string(rest); got != string(want) {
				t.Fatalf("%s, cut at %d: %q, want %q", name, at, got, want)
			}
		}
	}
}

func TestShortKeysAreNotSearchedFor(t *testing.T) {
	var none *Scanner
	if New("0123456789abcde") != nil || none.Contains([]byte("0123456789abcde")) ||
		none.Pending([]byte("0123456789")) != 0 {
		t.Error("a key of 15 characters is searched for")
	}
	if s := New("0123456789abcdef"); !s.Contains([]byte("x0123456789abcdef")) {
		t.Error("a key of 16 characters is not found")
	}
}

func FuzzMaskKeepsEveryOtherByte(f *testing.F) {
	key := signedKey(rand.New(rand.NewPCG(7, 8)))
	s := New(key)
	f.Add([]byte(key), 3)
	f.Add([]byte(base64.StdEncoding.EncodeToString([]byte(key))), 90)
	f.Fuzz(func(t *testing.T, data []byte, at int) {
		masked := bytes.Clone(data)
		s.Mask(masked)
		for i := range data {
			if masked[i] != data[i] && masked[i] != '*' {
				t.Fatalf("byte %d became %q", i, masked[i])
			}
		}
		if s.Contains(masked) || s.Contains(data) == bytes.Equal(masked, data) {
			t.Fatalf("%q became %q", data, masked)
		}
		if at >= 0 && at <= len(data) {
			if held := s.Pending(data[:at]); held >= MaxForm || held > at || held > 0 && held < MinPending {
				t.Fatalf("%d bytes of %d are held", held, at)
			}
		}
	})
}

func BenchmarkMask(b *testing.B) {
	s := New(signedKey(rand.New(rand.NewPCG(9, 10))))
	data := []byte(strings.Repeat(`{"id": "0b54ae43-67f6-4ac1-a1ed-7ab3d2a1c4d9", "name": "A name", "n": 12.5}, `, 400))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		s.Mask(data)
	}
}

func BenchmarkNew(b *testing.B) {
	key := signedKey(rand.New(rand.NewPCG(9, 10)))
	for b.Loop() {
		New(key)
	}
}

func BenchmarkIndex(b *testing.B) {
	key := signedKey(rand.New(rand.NewPCG(9, 10)))
	needle := []byte(key[len(key)-63:])
	data := []byte(strings.Repeat(`{"id": "0b54ae43-67f6-4ac1-a1ed-7ab3d2a1c4d9", "name": "A name", "n": 12.5}, `, 400))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		bytes.Index(data, needle)
	}
}

func TestAKeyIsFoundInANameOfAnyCase(t *testing.T) {
	key := signedKey(rand.New(rand.NewPCG(1, 2)))
	scanner := New(key)
	for _, name := range []string{"x-" + key, strings.ToLower("x-" + key), strings.ToUpper(key[len(key)-30:])} {
		if !scanner.ContainsName([]byte(name)) {
			t.Errorf("not found in %q", name)
		}
	}
	if (*Scanner)(nil).ContainsName([]byte(key)) ||
		scanner.ContainsName([]byte("x-ratelimit-remaining-per-minute-and-user")) {
		t.Error("found where there is no key")
	}
}
