-- stamp(key) tells a value from any that replaces it; put before look.lua and
-- remove.lua, with WHOLE and EDGE (bytes) set by Go.
--
-- Returns nil where there is no such key, else three values:
--   string   its length; the value itself up to WHOLE bytes and '', or of a
--            longer one its first and its last EDGE bytes
--   others   how many elements; ''; '<type>:<sha1 of DUMP>' of at most 64
--            elements in at most WHOLE bytes, else '<type>:<MEMORY USAGE>'.
--            A string with an empty head has an empty tail too, so these differ.
-- Costs: a copy of WHOLE bytes at most; nothing grows with the size of the value.
local call = redis.call

local function collection(key)
  local kind = call('TYPE', key).ok
  local count = ({ list = 'LLEN', hash = 'HLEN', set = 'SCARD', zset = 'ZCARD', stream = 'XLEN' })[kind]
  if not count then
    return nil -- a module's type: we do not know how to tell a change
  end
  local size = call(count, key)
  local mark = call('MEMORY', 'USAGE', key, 'SAMPLES', '5')
  if size <= 64 and call('MEMORY', 'USAGE', key, 'SAMPLES', '0') <= WHOLE then
    mark = redis.sha1hex(call('DUMP', key))
  end
  return size, '', kind .. ':' .. mark
end

local function stamp(key)
  local head = redis.pcall('GETRANGE', key, 0, WHOLE)
  if type(head) == 'table' then
    return collection(key) -- WRONGTYPE
  end
  if #head > WHOLE then
    return call('STRLEN', key), string.sub(head, 1, EDGE), call('GETRANGE', key, -EDGE, -1)
  end
  if head == '' and call('EXISTS', key) == 0 then
    return nil
  end
  return #head, head, ''
end
