package platform

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/gin-gonic/gin"
)

const (
	maxBody         = 1 << 20
	defaultPageSize = 25
	maxPageSize     = 100
)

// fieldErrors is the body of a 400: the errors, by field.
type fieldErrors map[string][]string

// Error implements error.
func (f fieldErrors) Error() string { return fmt.Sprintf("bad fields: %v", map[string][]string(f)) }

func (f fieldErrors) add(field, format string, args ...any) {
	f[field] = append(f[field], fmt.Sprintf(format, args...))
}

// problem is the body of every other refusal.
type problem struct {
	Detail string `json:"detail"`
	Code   string `json:"code"`
	Policy string `json:"policy,omitempty"` // the policy that denied the call
}

func refuse(c *gin.Context, status int, code, format string, args ...any) {
	c.AbortWithStatusJSON(status, problem{Detail: fmt.Sprintf(format, args...), Code: code})
}

func badRequest(c *gin.Context, errs fieldErrors) {
	c.AbortWithStatusJSON(http.StatusBadRequest, errs)
}

// readBody decodes the request's JSON object into v. If it cannot, it sends the error response and returns false.
func readBody(c *gin.Context, v any) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(c.Writer, c.Request.Body, maxBody))
	decoder.UseNumber()
	err := decoder.Decode(v)
	if err == nil && decoder.More() {
		err = errors.New("more than one JSON value")
	}
	if err == nil {
		return true
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		refuse(c, http.StatusRequestEntityTooLarge, "body_too_large", "the body is larger than %d bytes", tooLarge.Limit)
		return false
	}
	badRequest(c, bodyErrors(err))
	return false
}

func bodyErrors(err error) fieldErrors {
	errs := fieldErrors{}
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrongType) && wrongType.Field != "":
		errs.add(wrongType.Field, "expected %s, got a JSON %s", jsonName(wrongType.Type.Kind().String()), wrongType.Value)
	case errors.As(err, &wrongType):
		errs.add("body", "expected a JSON object, got a JSON %s", wrongType.Value)
	case errors.Is(err, io.EOF):
		errs.add("body", "a JSON object is required")
	default:
		errs.add("body", "not valid JSON: %v", err)
	}
	return errs
}

func jsonName(goKind string) string {
	switch goKind {
	case "string":
		return "a string"
	case "bool":
		return "a boolean"
	case "slice", "array":
		return "a list"
	case "struct", "map":
		return "an object"
	}
	return "a number"
}

// page is one page of a list. Next and Previous are paths relative to the API root, ready for kizen.api.
type page[T any] struct {
	Count       int       `json:"count"`
	Next        *string   `json:"next"`
	Previous    *string   `json:"previous"`
	Results     []T       `json:"results"`
	PerformedBy performer `json:"performed_by"`
}

// sendPage sends the page of all that the query parameters page and page_size select.
func sendPage[T any](c *gin.Context, all []T) {
	errs := fieldErrors{}
	number := queryInt(c, errs, "page", 1, 1, 1<<31-1)
	size := queryInt(c, errs, "page_size", defaultPageSize, 1, maxPageSize)
	if len(errs) > 0 {
		badRequest(c, errs)
		return
	}
	from := len(all)
	if number-1 <= len(all)/size {
		from = (number - 1) * size
	}
	to := min(from+size, len(all))
	p := page[T]{Count: len(all), Results: append([]T{}, all[from:to]...), PerformedBy: performedBy(c)}
	if to < len(all) {
		p.Next = pagePath(c.Request.URL, number+1)
	}
	if number > 1 {
		p.Previous = pagePath(c.Request.URL, number-1)
	}
	c.JSON(http.StatusOK, p)
}

func queryInt(c *gin.Context, errs fieldErrors, name string, missing, low, high int) int {
	text, given := c.GetQuery(name)
	if !given {
		return missing
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		errs.add(name, "expected a whole number from %d to %d, got %q", low, high, text)
	}
	return n
}

func pagePath(u *url.URL, number int) *string {
	query := u.Query()
	query.Set("page", strconv.Itoa(number))
	path := u.EscapedPath()[len(apiRoot):] + "?" + query.Encode()
	return &path
}
