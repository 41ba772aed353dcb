package minter

import (
	"crypto/rand"
	"hash/crc32"
	"math/big"
	"strings"
)

// A stored key is its prefix, 256 random bits in 43 characters and their CRC-32 in 6, in base 62. Secret scanners find
// it as kizen_[0-9A-Za-z]{49} and recognise false positives by the checksum.
const (
	storedPrefix = "kizen_"
	storedBody   = 43
	storedCheck  = 6
)

func newStoredToken() Token {
	random := make([]byte, 32)
	_, _ = rand.Read(random) // never fails
	body := base62(new(big.Int).SetBytes(random), storedBody)
	return NewToken(storedPrefix + body + storedChecksum(body))
}

func storedChecksum(body string) string {
	return base62(big.NewInt(int64(crc32.ChecksumIEEE([]byte(body)))), storedCheck)
}

func base62(n *big.Int, width int) string {
	text := n.Text(62)
	return strings.Repeat("0", width-len(text)) + text
}

// isStoredToken reports whether a token has the form of a stored key, including its checksum.
func isStoredToken(token string) bool {
	text, ok := strings.CutPrefix(token, storedPrefix)
	return ok && len(text) == storedBody+storedCheck && storedChecksum(text[:storedBody]) == text[storedBody:]
}
