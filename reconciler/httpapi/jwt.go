package httpapi

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// JWTOptions say which JSON Web Tokens of the application are taken.
type JWTOptions struct {
	// Secret is that of HS256, the only algorithm; at least 32 bytes.
	Secret []byte
	// Issuer and Audience must be the token's; "" takes any.
	Issuer, Audience string
	// Scopes are those of a token without a scope claim.
	Scopes []Scope
	// Now is the time; nil means time.Now.
	Now func() time.Time
}

// JWT verifies the application's own tokens.
type JWT struct {
	secret []byte
	scopes []Scope
	parser *jwt.Parser
}

// NewJWT is for tokens such as o says.
func NewJWT(o JWTOptions) *JWT {
	opts := []jwt.ParserOption{jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired(), jwt.WithStrictDecoding()}
	if o.Now != nil {
		opts = append(opts, jwt.WithTimeFunc(o.Now))
	}
	if o.Issuer != "" {
		opts = append(opts, jwt.WithIssuer(o.Issuer))
	}
	if o.Audience != "" {
		opts = append(opts, jwt.WithAudience(o.Audience))
	}
	return &JWT{secret: o.Secret, scopes: o.Scopes, parser: jwt.NewParser(opts...)}
}

// claims are what we read: the registered ones, and scope (RFC 8693, 4.2), names with
// spaces between them.
type claims struct {
	Scope *string `json:"scope"`
	jwt.RegisteredClaims
}

// verify is who holds the token. The error is fit for whoever sent it.
func (j *JWT) verify(text string) (Principal, error) {
	var c claims
	_, err := j.parser.ParseWithClaims(text, &c, func(t *jwt.Token) (any, error) {
		if _, ok := t.Header["crit"]; ok {
			return nil, errors.New("crit") // RFC 7515, 4.1.11: extensions that must be understood
		}
		return j.secret, nil
	})
	switch {
	case err == nil:
	case errors.Is(err, jwt.ErrTokenExpired):
		return Principal{}, errors.New("the JWT has expired")
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return Principal{}, errors.New("the JWT is not valid yet (nbf)")
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return Principal{}, errors.New("the JWT's issuer (iss) is not http.jwt_issuer")
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return Principal{}, errors.New("the JWT's audience (aud) is not http.jwt_audience")
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return Principal{}, errors.New("the JWT lacks a claim that is required: exp, and iss and aud where they are configured")
	default:
		return Principal{}, errors.New("the token is neither a static one (owt_…) nor a JWT that HS256 and http.jwt_secret verify")
	}
	p := Principal{Name: "jwt:" + shown(c.Subject), Scopes: j.scopes}
	if c.Scope != nil {
		p.Scopes = nil
		for _, name := range strings.Fields(*c.Scope) {
			if s := Scope(name); slices.Contains(Scopes, s) { // the others are the application's
				p.Scopes = append(p.Scopes, s)
			}
		}
	}
	return p, nil
}

// shown is a name from outside, short enough for a log line.
func shown(name string) string {
	const limit = 128
	if len(name) > limit {
		name = name[:limit]
	}
	return strings.ToValidUTF8(name, "?")
}
