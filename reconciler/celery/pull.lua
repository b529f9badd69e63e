-- pull: takes one message out of the broker while it is what it was, and keeps it.
--
-- KEYS[1]  the control hash      KEYS[2]  the record of the subject's messages
-- KEYS[3]  the queue's list, or the hash of unacked messages
-- KEYS[4]  only for an unacked message: the sorted set beside the hash
-- ARGV[1]  the caller's epoch
-- ARGV[2]  quarantine, ms; 0: the message is not kept
-- ARGV[3]  its delivery tag      ARGV[4]  its bytes
-- unacked:
-- ARGV[5]  the field's whole value
-- ARGV[6]  the list to which it would be given back, '' for none
-- queued:
-- ARGV[5]  the index at which it should be
-- ARGV[6]  how far below, ARGV[7] how far above that index it is looked for
-- ARGV[8]  how far from either end it is looked for then; 0: it is not
-- ARGV[9]  how far from an end an element is taken out; farther in it is replaced
-- ARGV[10] by this tombstone
-- last     until when the caller's look at the row is good, by this server's clock,
--          ms; 0: for ever
--
-- Returns {status, index}: 'stale' (another leader, or no control hash),
-- 'paused', 'late', 'held' (restored by an operator), 'changed' (not there, or not
-- found): nothing was touched. 'removed', or 'marked' (replaced by the tombstone). The
-- index is where it was found, -1 where that does not apply.
--
-- The record is a hash: 'm:' .. tag is the message, 'p:' .. tag its place: 'H' or
-- 'T' (nearer the head or the tail, where it is pushed when it is restored) and the
-- list. The first of each tag wins. It is written before the removal, so that a
-- full memory stops both.
--
-- Costs: LSET and LRANGE seek along the list, 0.1 to 0.3 ms in the middle
-- of a million; LREM and LPOS compare 1000 elements in 0.2 ms.
local call = redis.call
local record, place = KEYS[2], KEYS[3]
local control = call('HMGET', KEYS[1], 'epoch', 'paused')
if control[1] ~= ARGV[1] then
  return { 'stale', -1 }
end
if control[2] then
  return { 'paused', -1 }
end
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local good = tonumber(ARGV[#ARGV])
if good > 0 and now > good then
  return { 'late', -1 }
end
local held = call('HGET', record, 'hold_until')
if held and tonumber(held) > now then
  return { 'held', -1 }
end
local tag, want = ARGV[3], ARGV[4]

local function keep(side, list)
  if ARGV[2] == '0' then
    return
  end
  if call('HSETNX', record, 'm:' .. tag, want) == 1 then
    call('HSET', record, 'p:' .. tag, side .. list)
  end
  call('PEXPIRE', record, ARGV[2])
end

local function typed(key, kind)
  return call('TYPE', key).ok == kind
end

if #KEYS == 4 then
  if not typed(place, 'hash') or call('HGET', place, tag) ~= ARGV[5] then
    return { 'changed', -1 }
  end
  local index = typed(KEYS[4], 'zset')
  keep('T', ARGV[6])
  -- Never one without the other: an entry of the hash alone is never given back.
  call('HDEL', place, tag)
  if index then
    call('ZREM', KEYS[4], tag)
  end
  return { 'removed', -1 }
end

if not typed(place, 'list') then
  return { 'changed', -1 }
end
local length = call('LLEN', place)
-- As many elements of this size as are read in some tenths of a millisecond.
local step = math.max(1, math.min(64, math.floor(65536 / #want)))

local function between(from, to)
  to = math.min(to, length - 1)
  local budget = 262144
  for start = math.max(from, 0), to, step do
    local part = call('LRANGE', place, start, math.min(to, start + step - 1))
    for k, element in ipairs(part) do
      if element == want then
        return start + k - 1
      end
      budget = budget - #element
    end
    if budget <= 0 then
      return nil
    end
  end
end

local function find(hint)
  local reach = tonumber(ARGV[8])
  return between(hint, hint + 3) -- a seek costs more than some elements
    or between(hint + 4, hint + tonumber(ARGV[7]))
    or between(hint - tonumber(ARGV[6]), hint - 1)
    or reach > 0 and (call('LPOS', place, want, 'MAXLEN', reach)
    or length > reach and call('LPOS', place, want, 'RANK', -1, 'MAXLEN', reach))
end

local index = find(tonumber(ARGV[5]))
if not index then
  return { 'changed', -1 }
end
local behind = length - 1 - index
local atHead = index <= behind
keep(atHead and 'H' or 'T', place)
if math.min(index, behind) <= tonumber(ARGV[9]) then
  call('LREM', place, atHead and 1 or -1, want)
  return { 'removed', index }
end
call('LSET', place, index, ARGV[10])
return { 'marked', index }
