-- refill: puts a piece of a purge back at the tail of its list.
--
-- KEYS[1]  the piece      KEYS[2]  the list      KEYS[3]  the purge (quarantine.lua)
-- ARGV[1]  how many elements the caller has read in the piece
-- ARGV[2], ARGV[3], …  triples: the number, from 1, of an element that is not a message
--          as it stands, and the message's first and last byte in it; 0 0 for none:
--          it stays kept
--
-- Returns {status, pushed}: 'restored'; 'changed' (another call was faster) or
-- 'unplaced' (the list's key holds another type now): nothing was touched.
-- What is pushed leaves the piece in the same step, so that no second call does it.
local call = redis.call
local elements = call('LRANGE', KEYS[1], 0, -1)
if #elements ~= tonumber(ARGV[1]) then
  return { 'changed', 0 }
end
local kind = call('TYPE', KEYS[2]).ok
if kind ~= 'list' and kind ~= 'none' then
  return { 'unplaced', 0 }
end
local function push(key, from)
  for i = 1, #from, 500 do
    call('RPUSH', key, unpack(from, i, math.min(i + 499, #from)))
  end
end
local spans = {}
for i = 2, #ARGV, 3 do
  spans[tonumber(ARGV[i])] = { tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]) }
end
local back, left = {}, {}
for i, element in ipairs(elements) do
  local span = spans[i]
  if not span then
    back[#back + 1] = element
  elseif span[1] > 0 then
    back[#back + 1] = string.sub(element, span[1], span[2])
  else
    left[#left + 1] = element
  end
end
if #back == 0 then
  return { 'restored', 0 }
end
local ttl = call('PTTL', KEYS[1])
push(KEYS[2], back)
call('UNLINK', KEYS[1])
push(KEYS[1], left)
if #left > 0 and ttl > 0 then
  call('PEXPIRE', KEYS[1], ttl)
end
if call('EXISTS', KEYS[3]) == 1 then
  call('HINCRBY', KEYS[3], 'messages', -#back)
end
return { 'restored', #back }
