-- take: reads and deletes a field, so that one daemon acts on it once.
--
-- KEYS[1]  the hash      ARGV[1]  the field
--
-- Returns its value, or nil.
local value = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
return value
